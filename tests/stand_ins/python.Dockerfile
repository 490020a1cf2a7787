# Stands in for python:3.11.13-slim-bookworm: Debian bookworm with its own Python 3.11. What this
# machine needs to reach a registry (certificates) is in this image alone, never in ours.
FROM headwater-test/bookworm
COPY certificates /usr/local/share/ca-certificates
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* /usr/lib/python3.11/EXTERNALLY-MANAGED \
    && update-ca-certificates \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python3.11 \
    && ln -s /usr/bin/python3.11 /usr/local/bin/python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
