"""Looks for secrets in what git tracks: ``make security``. Keys made from public seeds are none."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = re.compile(
    r"(\.lock|\.csv|\.png)$|^(schemas|tests/vectors|tests/.*/data|docs/reference/.*\.json)/?"
)
"""Locks are hashes; vectors have keys from public seeds, as their page says."""
PLUGINS = (
    "AWSKeyDetector", "ArtifactoryDetector", "AzureStorageKeyDetector", "BasicAuthDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector", "MailchimpDetector", "NpmDetector",
    "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SendGridDetector", "SlackDetector",
    "SquareOAuthDetector", "StripeDetector", "TwilioKeyDetector",
)  # fmt: skip
OWN = re.compile(r"\b(tsk|tsi)_[0-9a-f]{12}_[A-Za-z0-9_-]{43}\b")
"""Our own tokens, which no detector knows."""
EXCUSED = re.compile(
    r"pragma: allowlist secret|BEGIN (PUBLIC|PRIVATE) KEY-----(\\n|\")|user:pw@|user:secret@"
)


def scan(root: Path = ROOT) -> list[str]:
    """Places of what looks like a secret in the repository at ``root``."""
    from detect_secrets import SecretsCollection
    from detect_secrets.settings import transient_settings

    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True).stdout
    names = [name for name in tracked.decode().split("\0") if name and not SKIPPED.search(name)]
    found = []
    with transient_settings({"plugins_used": [{"name": name} for name in PLUGINS]}):
        for name in names:
            secrets = SecretsCollection(root=str(root))
            secrets.scan_file(name)
            lines = (root / name).read_text(encoding="utf-8", errors="replace").splitlines()
            for _, secret in secrets:
                line = lines[secret.line_number - 1] if secret.line_number <= len(lines) else ""
                if not EXCUSED.search(line):
                    found.append(f"{name}:{secret.line_number}: {secret.type}")
            found += [f"{name}:{at}: API key" for at, line in enumerate(lines, 1) if OWN.search(line)]
    return sorted(set(found))


if __name__ == "__main__":
    places = scan()
    print("\n".join(places) or "no secrets found")
    sys.exit(bool(places))
