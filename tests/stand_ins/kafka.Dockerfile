# Stands in for apache/kafka:4.3.1: the same broker from Maven, set up by the same Java program
# (kafka.docker.KafkaDockerWrapper) from the same KAFKA_ variables, as the same kind of user.
FROM headwater-test/bookworm
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/* && useradd --uid 1000 appuser \
    && install -d -o appuser /var/lib/kafka/data /etc/kafka/docker /opt/kafka/config /mnt/shared/config
COPY jars /opt/kafka/libs
COPY kafka-server.properties /etc/kafka/docker/server.properties
COPY kafka-log4j2.yaml /etc/kafka/docker/log4j2.yaml
COPY kafka-log4j2.yaml /etc/kafka/docker/tools-log4j2.yaml
COPY kafka-run /etc/kafka/docker/run
USER appuser
VOLUME ["/var/lib/kafka/data"]
ENTRYPOINT ["bash", "/etc/kafka/docker/run"]
