"""The secret that webhooks are signed with, by the scheme of Standard Webhooks (symmetric, `v1`).

Source: the Standard Webhooks specification 1.0; `openai.webhooks.unwrap` verifies the same headers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from braid.errors import InvalidRequest

VARIABLE = "BRAID_WEBHOOK_SECRET"
PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    """One secret.

    Raises:
        InvalidRequest: it is too short or too long.
    """

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not MIN_BYTES <= len(self.key) <= MAX_BYTES:
            message = f"the webhook secret has {len(self.key)} bytes; it must have {MIN_BYTES} to {MAX_BYTES}"
            raise InvalidRequest(message, param="webhook_secret")

    @classmethod
    def new(cls) -> WebhookSecret:
        """A random one."""
        return cls(secrets.token_bytes(32))

    @classmethod
    def parse(cls, text: str) -> WebhookSecret:
        """Read `whsec_` and base64.

        Raises:
            InvalidRequest: it is not that. The text is not repeated.
        """
        try:
            if not text.strip().startswith(PREFIX):
                raise ValueError
            return cls(base64.b64decode(text.strip().removeprefix(PREFIX), validate=True))
        except (ValueError, binascii.Error):
            raise InvalidRequest(
                f"the webhook secret must be {PREFIX} and base64, as `braid keys webhook-secret` prints it",
                param="webhook_secret",
            ) from None

    @property
    def text(self) -> str:
        """As it is given to who verifies."""
        return PREFIX + base64.b64encode(self.key).decode()

    def of(self, owner: str) -> WebhookSecret:
        """The secret of one key's webhooks, so that who can verify theirs cannot forge another's.

        Where there are no keys (the owner is empty), it is the server's own.
        """
        if not owner:
            return self
        return WebhookSecret(hmac.digest(self.key, b"braid webhooks of " + owner.encode(), hashlib.sha256))

    def headers(self, message_id: str, sent_at: int, body: bytes) -> dict[str, str]:
        """The three headers of a signed message.

        Args:
            sent_at: seconds since 1970.
        """
        signed = f"{message_id}.{sent_at}.".encode() + body
        signature = base64.b64encode(hmac.digest(self.key, signed, hashlib.sha256)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(sent_at),
            "webhook-signature": f"v1,{signature}",
        }
