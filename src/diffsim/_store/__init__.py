"""What a run leaves on disk: its directory, trajectories (HDF5), restarts (Orbax), provenance."""

from .cached import cached_arrays as cached_arrays
from .cached import programs_folder as programs_folder
from .h5md_unit import h5md_unit as h5md_unit
from .json_text import to_json as to_json
from .lock import alone as alone
from .lock import locked as locked
from .parameters import fitted as fitted
from .parameters import write_parameters as write_parameters
from .provenance import file_sha256 as file_sha256
from .provenance import identity as identity
from .provenance import mask_secrets as mask_secrets
from .provenance import peak_bytes as peak_bytes
from .provenance import provenance as provenance
from .restart import Restarts as Restarts
from .room import is_full as is_full
from .run_directory import RunDirectory as RunDirectory
from .run_directory import refuse_links as refuse_links
from .sums import changed as changed
from .trajectory_reader import Series as Series
from .trajectory_reader import Trajectory as Trajectory
from .trajectory_reader import datasets as datasets
from .trajectory_reader import read_trajectory as read_trajectory
from .trajectory_writer import TrajectoryWriter as TrajectoryWriter
from .xdmf import write_xdmf as write_xdmf
