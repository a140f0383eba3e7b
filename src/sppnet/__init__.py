"""sppnet: vision models that take images at their own size.

The names in ``__init__.pyi`` are the whole public interface. Each is loaded when it is first asked for, so that importing the
package, and `sppnet --help`, cost nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
