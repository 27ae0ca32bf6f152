"""The figure of the experiment."""
def draw(results, file): pass
