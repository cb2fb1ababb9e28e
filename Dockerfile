FROM python:3.11-slim-bookworm

# CPU torch first, so that no CUDA build is drawn in. Set to "" to take torch from the default index.
ARG TORCH_INDEX="--index-url https://download.pytorch.org/whl/cpu"
RUN pip install --no-cache-dir torch==2.13.0 ${TORCH_INDEX}

WORKDIR /opt/edgepress
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY edgepress edgepress
COPY compress compress
COPY exporters exporters
COPY validators validators
COPY targets targets
RUN pip install --no-cache-dir --constraint constraints.txt ".[all,digits]"

RUN useradd --create-home edgepress
USER edgepress
WORKDIR /home/edgepress
ENTRYPOINT ["edgepress"]
CMD ["--help"]
