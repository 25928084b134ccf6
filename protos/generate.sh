#!/bin/sh
# Writes splitrt/wire/ from the .proto files.
#
# With grpcio-tools 1.80.0: what it generates imports under every later grpcio and protobuf < 8;
# what a newer one generates refuses older devices.
set -e
cd "$(dirname "$0")/.."
python3 -m venv build/protos
build/protos/bin/pip install -q grpcio-tools==1.80.0 'setuptools<81'
build/protos/bin/python -m grpc_tools.protoc -Iprotos --python_out=. --pyi_out=. \
  --grpc_python_out=. protos/splitrt/wire/tail.proto protos/splitrt/wire/decode.proto \
  protos/splitrt/wire/star.proto protos/splitrt/wire/daemon.proto \
  protos/splitrt/wire/fleet.proto protos/splitrt/wire/adapt.proto
# Descriptors only: see the file.
build/protos/bin/python -m grpc_tools.protoc -Iprotos --descriptor_set_out=splitrt/wire/oip.binpb \
  protos/splitrt/wire/oip.proto
