# A server of one tested run: docker build -f deploy/serve.Dockerfile --build-arg RUN=runs/mine -t mine .
# A base model that is a folder has to be copied to the place where the run found it; one of the hub is fetched at the start.
FROM python:3.12-slim
ARG RUN
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt "/src[serve]"
COPY ${RUN} /run
EXPOSE 8000
USER nobody
ENV HF_HOME=/tmp/huggingface
ENTRYPOINT ["bayeslora", "serve", "--run", "/run", "--host", "0.0.0.0"]
