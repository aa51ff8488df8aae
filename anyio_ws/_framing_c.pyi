# The types of the compiled twin are those of the Python one.
from ._framing_py import MessageReader as MessageReader
from ._framing_py import fragments as fragments
from ._framing_py import frame as frame
from ._framing_py import mask as mask
