# bayeslora on an NVIDIA GPU: the wheels of torch bring CUDA along, the host brings the driver and its container toolkit.
#   docker build -t bayeslora .
#   docker run --rm --gpus all -v "$PWD:/work" bayeslora fit -c base/mistral_7b -c data/arc_easy -c method/mc_dropout
FROM python:3.12-slim
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility PIP_NO_CACHE_DIR=1
# Triton compiles its kernels' launchers with the C compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY bayeslora bayeslora
RUN python -m pip install --constraint constraints.txt ".[ivon,serve]"
WORKDIR /work
ENTRYPOINT ["bayeslora"]
CMD ["--help"]
