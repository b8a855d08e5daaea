# The operator's image: one static program, no shell, no root. The build context is a folder that holds nothing but the program:
#   docker build -f Dockerfile target/image
FROM scratch
LABEL org.opencontainers.image.title="countersign" \
      org.opencontainers.image.description="A Kubernetes operator for the whole life of client certificates" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY countersign /countersign
USER 65532:65532
ENTRYPOINT ["/countersign"]
