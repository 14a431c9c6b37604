"""The body of an HTTP request: JSON to a request's options, and these to a message for Triton."""

import base64
import binascii
import dataclasses
import json
from typing import Any

from diffsplat_client.contract import ENSEMBLE, KEEP, ON_DISCONNECT, REQUEST_TENSORS
from diffsplat_client.errors import InvalidRequestError
from diffsplat_client.formats import PLY
from diffsplat_client.request import FILES, GenerationRequest
from diffsplat_client.request_checks import short
from tritonclient.grpc import service_pb2 as pb

from diffsplat.serving.edge.admission import RefusedError

_DATATYPES = {spec.name: spec.datatype for spec in REQUEST_TENSORS}


def read_body(body: bytes) -> GenerationRequest:
    """Fields of GenerationRequest as JSON, image files in base64; without formats it is .ply."""
    try:
        values = json.loads(body)
        if not isinstance(values, dict):
            raise InvalidRequestError("the body must be a JSON object")
        if unknown := sorted(set(values) - {field.name for field in dataclasses.fields(GenerationRequest)}):
            raise InvalidRequestError(f"{short(unknown[0])}: no option of a request has this name")
        files = {name: values.pop(name) for name in FILES if name in values}
        request = GenerationRequest.from_dict({"formats": [PLY.name], **values})
        decoded = {name: base64.b64decode(data, validate=True) for name, data in files.items()}
        return GenerationRequest(**{**request.__dict__, **decoded}).validate()
    except InvalidRequestError as error:
        raise RefusedError("INVALID_ARG", str(error)) from None
    except (binascii.Error, TypeError):
        raise RefusedError("INVALID_ARG", f"{' and '.join(FILES)} must be files in base64") from None
    except (ValueError, RecursionError):
        raise RefusedError("INVALID_ARG", "the body must be a JSON object") from None


def to_message(request: GenerationRequest, client_id: str) -> Any:
    """A ModelInferRequest whose result outlives the connection."""
    message = pb.ModelInferRequest(model_name=ENSEMBLE, id=client_id)
    message.parameters[ON_DISCONNECT].string_param = KEEP
    for name, array in request.to_tensors().items():
        message.inputs.add(name=name, datatype=_DATATYPES[name], shape=array.shape)
        strings = _DATATYPES[name] == "BYTES"
        parts = (len(value).to_bytes(4, "little") + value for value in array.reshape(-1)) if strings else ()
        message.raw_input_contents.append(b"".join(parts) if strings else array.tobytes())
    return message
