"""Executes notebooks in a fresh kernel, at small scale, and fails with the cell and the error if one raises.

The notebooks read `JAXINTERP_SMALL=1` where a smaller run makes sense. They run in a scratch folder: nothing is
written beside them, and their committed outputs stay as they are.
"""

import os
import pathlib
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

# At small scale most of the time is compiling, which is quicker without XLA's fusion emitters (as in the tests).
os.environ.update(JAXINTERP_SMALL="1", JAX_PLATFORMS="cpu", XLA_FLAGS="--xla_cpu_use_fusion_emitters=false")

failed = 0
for path in sys.argv[1:]:
    notebook = nbformat.read(path, as_version=4)
    begin = time.time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            NotebookClient(
                notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
            ).execute()
            print(f"{pathlib.Path(path).name}: {len(notebook.cells)} cells executed in {time.time() - begin:.0f} s")
        except CellExecutionError as error:
            failed += 1
            print(f"{path}: failed\n{error}", file=sys.stderr)
sys.exit(failed > 0)
