# The web page and the command, on the CPU. Not built by any test.
#
#     docker build -t ddrm-jpeg .
#     docker run --rm -p 7860:7860 ddrm-jpeg
#     docker run --rm --user "$(id -u)" -v "$PWD:/pictures" ddrm-jpeg ddrm-jpeg restore /pictures/photo.jpg
FROM python:3.11-slim

# PyPI's torch for Linux brings CUDA along.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    HOME=/tmp \
    GRADIO_SERVER_NAME=0.0.0.0

WORKDIR /app
COPY . .
RUN pip install --constraint constraints.txt '.[space]'

USER nobody
EXPOSE 7860
CMD ["python", "space/app.py"]
