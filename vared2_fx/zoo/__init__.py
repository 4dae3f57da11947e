"""Video networks by name: pytorchvideo's hub, torchvision, and what comes with this package.

    >>> from vared2_fx import zoo
    >>> zoo.spec("x3d_m").frames
    16

`load("x3d_m", pretrained=True)` builds one. Importing this package imports neither library.
"""

from vared2_fx.zoo.registry import load, names, spec
from vared2_fx.zoo.spec import Spec

__all__ = ["Spec", "load", "names", "spec"]
