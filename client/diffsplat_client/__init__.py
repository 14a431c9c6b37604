"""Client of the DiffSplat service. Importing it needs numpy alone; the wire is imported with the first request."""

from diffsplat_client.async_client import AsyncClient
from diffsplat_client.client import Client
from diffsplat_client.cloud import SplatCloud
from diffsplat_client.contract import CONTRACT_VERSION
from diffsplat_client.errors import (
    AuthenticationError,
    ContractMismatchError,
    DiffSplatError,
    InvalidRequestError,
    RequestCancelledError,
    RequestNotFoundError,
    RequestTimeoutError,
    ServerError,
    ServerUnavailableError,
)
from diffsplat_client.events import Event, Finished, Preview, Progress, Queued
from diffsplat_client.formats.any_file import read_splats, write_splats
from diffsplat_client.formats.ply import read_ply, write_ply
from diffsplat_client.generation import Generation
from diffsplat_client.handle import AsyncGenerationHandle, GenerationHandle
from diffsplat_client.poses import four_views, turntable
from diffsplat_client.probes import ServerStatus
from diffsplat_client.reconstruction import Reconstruction
from diffsplat_client.reconstruction_request import ReconstructionRequest
from diffsplat_client.request import GenerationRequest
from diffsplat_client.stream import AsyncGenerationStream, GenerationStream
from diffsplat_client.viewer import write_viewer

__all__ = [
    "CONTRACT_VERSION",
    "AsyncClient",
    "AsyncGenerationHandle",
    "AsyncGenerationStream",
    "AuthenticationError",
    "Client",
    "ContractMismatchError",
    "DiffSplatError",
    "Event",
    "Finished",
    "Generation",
    "GenerationHandle",
    "GenerationRequest",
    "GenerationStream",
    "InvalidRequestError",
    "Preview",
    "Progress",
    "Queued",
    "Reconstruction",
    "ReconstructionRequest",
    "RequestCancelledError",
    "RequestNotFoundError",
    "RequestTimeoutError",
    "ServerError",
    "ServerStatus",
    "ServerUnavailableError",
    "SplatCloud",
    "four_views",
    "read_ply",
    "read_splats",
    "turntable",
    "write_ply",
    "write_splats",
    "write_viewer",
]
