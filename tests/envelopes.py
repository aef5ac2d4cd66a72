"""What every error of the API must look like."""

from uuid import UUID

ERROR = {"code", "message", "request_id"}


def assert_error(response, status, code):
    """The answer is that error, in an envelope and nothing else; returns the envelope's content."""
    assert response.status_code == status, (response.status_code, response.content)
    assert response.headers["Content-Type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() - {"details"} == ERROR, error
    assert error["code"] == code, error
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert UUID(response.headers["X-Call-ID"])
    assert "Traceback" not in response.content.decode()
    return error
