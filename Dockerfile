# syntax=docker/dockerfile:1
# flexo in a container. PyTorch is its CPU build; for NVIDIA GPUs take PyPI's build, which brings CUDA along:
#
#   docker build -t flexo .
#   docker build -t flexo:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#
# What a command reads and writes lies in /work:
#
#   alias run='docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work"'
#   run flexo flexo merge experts/math.pt experts/code.pt -o model
#   run --gpus all flexo:cuda flexo train-expert +domain=local domain.name=mine domain.train=text.jsonl.gz
#
# run.compile=true needs a C compiler, which the image does not have.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
WORKDIR /flexo
COPY . .
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /dist .

FROM python:${PYTHON}-slim AS base
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=sample,sign
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
COPY constraints.txt /tmp/
# torch first and alone, so that this layer stays when the code changes; what torch needs comes with the wheel
RUN pip install --no-deps --index-url "${TORCH_INDEX}" --constraint /tmp/constraints.txt torch
RUN --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --constraint /tmp/constraints.txt "$(echo /dist/flexo-*.whl)[${EXTRAS}]"

# any user may run it: those that --user names have no home and no name of their own
ENV HOME=/tmp USER=flexo
RUN useradd --no-create-home --uid 1000 flexo
USER 1000
WORKDIR /work
CMD ["flexo"]

# docker build --target serve --build-arg EXTRAS=serve -t flexo-serve .; settings in serve.yaml of the mounted folder, see docs/serving.md
FROM base AS serve
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=300s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/ready')"]
CMD ["flexo-serve", "--config", "serve.yaml"]

FROM base
