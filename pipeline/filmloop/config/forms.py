"""Forms that text in a site file may have, each with the words for it: what an error and the reference page say."""

from __future__ import annotations

SITE_NAME = r"^[a-z0-9][a-z0-9-]*$"
UUID = r"^([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})?$"
COLLECTION_PATH = r"^((/|~/)[^\r\n]*)?$"
HOST_PATH = r"^(/[^\r\n]*)?$"
WORD = r"^[A-Za-z0-9_.:,+=&|*()\[\]@/-]*$"
LINE = r"^[^\r\n]*$"
WEB_ADDRESS = r"^(https?://\S+)?$"
SOCKET_ADDRESS = r"^(tcp|ipc)://."

MODEL_NAME = r"^([^./:'\"\\\x00-\x1f][^/:'\"\\\x00-\x1f]{0,79})?$"
"""MLflow takes neither / nor : in a name, and its search none of the others."""

WORDS = {
    MODEL_NAME: "a name of up to 80 characters without / : \\ and quotes, no dot first",
    SITE_NAME: "small letters, digits and hyphens, no hyphen first",
    UUID: "a UUID such as 3f1f2a54-9d6b-4a1b-8f4e-0c5d9be7a001",
    COLLECTION_PATH: "a folder that begins with / or ~/",
    HOST_PATH: "a folder that begins with /",
    WORD: "one word, without spaces, quotes or other signs of a shell",
    LINE: "one line",
    WEB_ADDRESS: "an address that begins with http:// or https://",
    SOCKET_ADDRESS: "an address that begins with tcp:// or ipc://",
}
