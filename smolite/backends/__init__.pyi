from .extras import what_to_install as what_to_install
from .seams import Backend as Backend
from .seams import OnePass as OnePass
from .seams import backend as backend
