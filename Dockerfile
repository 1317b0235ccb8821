# The pipeline from a clean system, as a user without rights, with a checkout that it only reads:
#     docker build -t convmixer .
#     docker run --rm -v convmixer:/home/reader/convmixer convmixer [make report STUDY=quick]
# The packages are in the image; CIFAR-10, records and pages stay in the volume.
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home reader \
    && mkdir /opt/venv /home/reader/convmixer \
    && chown reader /opt/venv /home/reader/convmixer
WORKDIR /opt/convmixer-cifar10
ENV CONVMIXER_VENV=/opt/venv CONVMIXER_DATA=/home/reader/convmixer/data CONVMIXER_REPORTS=/home/reader/convmixer/reports
# The packages come first, so that a change of a study or a page does not fetch them again.
COPY Makefile pyproject.toml README.md LICENSE ./
COPY lib lib
USER reader
RUN make setup
COPY . .
CMD ["make", "report", "STUDY=smoke"]
