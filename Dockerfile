# ghost_jax as an image:  docker build --build-arg VARIANT=tpu --tag IMAGE .       VARIANT is cpu, cuda or tpu
# Then: docker run IMAGE python -m ghost_jax.train --config=configs/chat_v5.py:nano --workdir=gs://BUCKET/runs/nano
# The base is pinned by its tag; append @sha256:DIGEST, which your registry shows, to pin its bytes as well.
FROM python:3.11.14-slim-bookworm
ARG VARIANT=cpu
# Packages by hash, for this Python on Linux x86-64 (make image-lock). One of them is built from source: by the
# setuptools of the base image, not by the newest one.
COPY launch/image/${VARIANT}.lock /opt/requirements.lock
RUN pip install --no-cache-dir --no-build-isolation --require-hashes --requirement /opt/requirements.lock \
    && useradd --uid 1000 --create-home ghost \
    && install --directory --owner=ghost --group=ghost /cache /app /app/runs
WORKDIR /app
COPY . .
ENV PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/cache
USER 1000:1000
CMD ["python", "-m", "ghost_jax", "--help"]
