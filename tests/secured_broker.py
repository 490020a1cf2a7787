"""The embedded broker with one SASL_SSL listener for clients, SCRAM users and ACLs that refuse what
is not granted. Its own certificate is the authority that clients trust."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterable
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from runtime.broker import HOST, EmbeddedBroker, _free_ports
from runtime.jars import require_java
from topics.access import PROCESSES, Right

_OPERATIONS = {
    "All": AclOperation.ALL,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}
_RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}


class SecuredBroker(EmbeddedBroker):
    """`extra(user)` is the kafka.extra of a client; `passwords` holds every user's secret."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._folder = directory.resolve()
        self.passwords = {
            name: f"hw-secret-{secrets.token_hex(12)}" for name in ("admin", *PROCESSES)
        }

    @property
    def authority(self) -> Path:
        return self._folder / "ca.pem"

    def extra(self, user: str) -> dict[str, str]:
        """The secret by file, as a config must have it."""
        word = self._folder / f"{user}.secret"
        if not word.exists():
            word.write_text(self.passwords[user] + "\n")
        return {**self.connection(), "sasl.username": user, "sasl.password": f"file:{word}"}

    def connection(self) -> dict[str, str]:
        return {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "ssl.ca.location": str(self.authority),
        }

    def admin(self) -> AdminClient:
        own = {"sasl.username": "admin", "sasl.password": self.passwords["admin"]}
        return AdminClient(
            {"bootstrap.servers": self.bootstrap, "log_level": 0, **self.connection(), **own}
        )

    def grant(self, rights: Iterable[Right]) -> None:
        """Let each process, as the user of its name, do this."""
        bindings = [
            AclBinding(
                _RESOURCES[right.resource],
                right.name,
                ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL,
                f"User:{right.process}",
                "*",
                _OPERATIONS[operation],
                AclPermissionType.ALLOW,
            )
            for right in rights
            for operation in right.operations
        ]
        admin = self.admin()  # kept: its futures die with it
        for future in admin.create_acls(bindings).values():
            future.result(60)

    def is_ready(self) -> bool:
        admin = self.admin()
        try:
            return str(admin.list_topics(timeout=3).cluster_id) == self.cluster_id
        except Exception:  # noqa: BLE001  it is not up yet, whatever the client calls that
            return False

    def _format_options(self) -> list[str]:
        return [
            option
            for name, word in self.passwords.items()
            for option in ("--add-scram", f"SCRAM-SHA-512=[name={name},password={word}]")
        ]

    def _properties(self, controller_port: int) -> str:
        self._make_certificate()
        inner, _ = _free_ports(0)
        own = {
            "listeners": f"CLIENT://{HOST}:{self._port},INNER://{HOST}:{inner},"
            f"CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"CLIENT://{HOST}:{self._port},INNER://{HOST}:{inner}",
            "inter.broker.listener.name": "INNER",
            "listener.security.protocol.map": "CLIENT:SASL_SSL,INNER:PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "listener.name.client.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common."
            "security.scram.ScramLoginModule required;",
            "ssl.keystore.location": str(self._folder / "broker.p12"),
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.password": "only-a-test",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:admin;User:ANONYMOUS",  # the latter on the inner listeners only
            "allow.everyone.if.no.acl.found": "false",
            "broker.session.timeout.ms": "60000",  # it is never killed
        }
        plain = super()._properties(controller_port)
        kept = [line for line in plain.splitlines() if line.partition("=")[0] not in own]
        return "\n".join([*kept, *(f"{name}={value}" for name, value in own.items()), ""])

    def _make_certificate(self) -> None:
        keytool = Path(require_java()).resolve().with_name("keytool")
        store = ["-keystore", str(self._folder / "broker.p12"), "-storetype", "PKCS12"]
        store += ["-storepass", "only-a-test", "-alias", "broker"]
        make = ["-genkeypair", "-keyalg", "EC", "-dname", "CN=broker", "-validity", "2"]
        make += ["-ext", f"san=ip:{HOST}", "-ext", "bc=ca:true"]
        for arguments in (make, ["-exportcert", "-rfc", "-file", str(self.authority)]):
            subprocess.run([str(keytool), *arguments, *store], check=True, capture_output=True)
