# The types of the compiled twins are those of the Python ones.
from ._lane_py import PollerLane as PollerLane
from ._lane_py import SocketLane as SocketLane
from ._lane_py import Watcher as Watcher
