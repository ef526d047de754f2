# SPDX-License-Identifier: Apache-2.0
"""Credentials: ours where we can read them, else what the kubernetes package's login plugins come to.

A kubeconfig that logs in by ``exec`` or an auth provider (clouds, OIDC) is for people; in a pod it is the
service account. The token of a plugin is asked for once: the operator starts anew when it is refused.
"""

from collections.abc import Mapping

from holdfast_api.kube import Config, ConfigError
from holdfast_api.kubeconfig import Token


def load_config(kubeconfig: str | None, environ: Mapping[str, str]) -> Config:
    """From ``kubeconfig`` (or KUBECONFIG, or the pod). ConfigError says what to do."""
    known = {**environ, "KUBECONFIG": kubeconfig} if kubeconfig else dict(environ)
    try:
        return Config.load(known)
    except ConfigError as error:
        if "logs in by" not in str(error) or not kubeconfig:
            raise
        return _by_plugin(kubeconfig, error)


def _by_plugin(kubeconfig: str, why: ConfigError) -> Config:
    import ssl

    import kubernetes.config

    client = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_kube_config(  # type: ignore[no-untyped-call]
            kubeconfig, client_configuration=client, persist_config=False
        )
    except kubernetes.config.ConfigException as error:
        raise ConfigError(f"{why}; and the kubernetes package can't either: {error}") from error
    header = client.get_api_key_with_prefix("BearerToken") or client.get_api_key_with_prefix("authorization")
    if not header and not client.cert_file:
        raise why
    tls = ssl.create_default_context(cafile=client.ssl_ca_cert)
    if not client.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    if client.cert_file:
        tls.load_cert_chain(client.cert_file, client.key_file)
    token = header.split(" ", 1)[-1] if header else None
    return Config(server=client.host.rstrip("/"), tls=tls, token=Token(token))
