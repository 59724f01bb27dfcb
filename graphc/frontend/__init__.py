"""How people write graphs.

A `Tensor` has methods that are functions of the modules above it. It reaches them, when they are called, as attributes
of this package, which therefore loads them.
"""

from graphc.frontend import functional as functional
from graphc.frontend import indexing as indexing
