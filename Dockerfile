# The server on CUDA. PyTorch's wheels bring CUDA with them, so a slim Python is enough; the host brings the driver.
#   docker build -t probewire .
#   docker run --rm -it -v probewire:/home/probewire probewire users add ada
#   docker run --gpus all -p 8000:8000 -p 50051:50051 -v probewire:/home/probewire probewire
# That serves the default model; for another: … probewire serve --host 0.0.0.0 MODEL
# Whoever calls HTTP by another name than localhost: … probewire serve --host 0.0.0.0 --allowed-host box.lab

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# The gigabytes first, in a layer that a change of our own code leaves alone.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt torch transformers
COPY . .
RUN pip install --constraint constraints.txt '.[torch,server,grammar]'

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 probewire
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
WORKDIR /home/probewire
# Models and users outlive the container here; no model is baked in.
VOLUME /home/probewire
EXPOSE 8000 50051
# A first start fetches and loads the model; until then /health may not answer.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4).read()"]
# Inside a container nobody reaches loopback, hence 0.0.0.0, which the server refuses without users and their keys.
# Where the network itself is trusted: … probewire serve --host 0.0.0.0 --insecure
ENTRYPOINT ["probewire"]
CMD ["serve", "--host", "0.0.0.0"]
