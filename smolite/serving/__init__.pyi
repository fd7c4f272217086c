from .page import build_app as build_app
from .page import build_notice as build_notice
from .page import launch_app as launch_app
from .page import serve_app as serve_app
from .talker import Talker as Talker
from .talker import end_ids as end_ids
from .talker import engine_names as engine_names
from .talker import open_engine as open_engine
