# One image for all processes: docker run IMAGE web|worker|keeper|migrate, or with ORCH_PROCESSES=full
# web|wake|ops|background|health|keeper|beat|migrate.
# The default is the web server on port 8000. Every ORCH_* setting comes from the environment: see docs/operations.md.
# `make image` builds the image, also without a registry.
# The digest is of the index of all platforms. To renew it: docker buildx imagetools inspect python:3.11-slim-bookworm
ARG BASE_IMAGE=python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# The first stage knows the sources of packages (index URLs, certificates). The image is the second stage, without these values.
FROM ${BASE_IMAGE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /venv
COPY requirements.lock .ca-bundle.cr[t] /
RUN if [ -e /.ca-bundle.crt ]; then export PIP_CERT=/.ca-bundle.crt; fi \
    && /venv/bin/pip install --require-hashes --only-binary :all: -r /requirements.lock \
    && /venv/bin/python -m compileall -q /venv/lib

FROM ${BASE_IMAGE}
RUN groupadd --gid 10001 roundhouse \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /app --shell /usr/sbin/nologin roundhouse \
    && install -d -o roundhouse -g roundhouse -m 0700 /home/roundhouse-state
COPY --from=build /venv /venv
WORKDIR /app
COPY manage.py ./
COPY config/ config/
COPY fleet/ fleet/
COPY engines/ engines/
COPY policy/ policy/
COPY audit/ audit/
COPY common/ common/
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    ORCH_ENVIRONMENT=production ORCH_BIND=0.0.0.0 ORCH_PORT=8000 ORCH_HOME=/home/roundhouse-state
# collectstatic reads the settings, which require all secrets: the values here are placeholders, neither used nor kept.
RUN python -m compileall -q . \
    && ORCH_DATABASE_URL=postgresql://none/none ORCH_REDIS_URL=redis://none \
       ORCH_ADMIN_KEY="$(printf '%032d' 0)" ORCH_SECRET_KEY="$(printf '%032d' 0)" \
       ORCH_MASTER_KEY="$(python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())')" \
       python manage.py collectstatic --noinput
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "config.processes", "exec"]
CMD ["web"]
