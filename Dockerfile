# A server of models on a CPU. docs/serving.md says how to run it; the models are mounted.
FROM python:3.12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The address of PyTorch's CPU builds; what pip finds without it brings gigabytes of CUDA along.
ARG TORCH_INDEX=
RUN python -m venv /opt/bertfast \
    && /opt/bertfast/bin/pip install --no-cache-dir torch \
       ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
    && BERTFAST_REQUIRE_EXTENSION=1 /opt/bertfast/bin/pip install --no-cache-dir '.[serve]'

FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin server
COPY --from=build /opt/bertfast /opt/bertfast
# The root file system may be read-only: nothing is written but to /tmp.
ENV PATH=/opt/bertfast/bin:$PATH PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 HOME=/tmp
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["bertfast", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/models/model"]
