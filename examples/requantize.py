"""Converts the quantized weights of a GGUF model to Q8_0, which more engines support than smaller formats.

    requantize.py IN.gguf OUT.gguf

Needs the package gguf. The quality does not improve: the quantization error of IN remains.
"""

import sys

import numpy
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

PLAIN = (GGMLQuantizationType.F32,)
ALL_Q8_0 = 7  # the value of general.file_type for Q8_0


def copy_fields(reader: GGUFReader, writer: GGUFWriter) -> None:
    """Copies all metadata, except the fields that the writer sets itself."""
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = ALL_Q8_0 if name == "general.file_type" else field.contents()
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], sub_type=inner)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    reader = GGUFReader(sys.argv[1])
    writer = GGUFWriter(sys.argv[2], reader.fields["general.architecture"].contents())
    copy_fields(reader, writer)
    q8_0 = GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        if tensor.tensor_type in PLAIN:
            writer.add_tensor(tensor.name, numpy.array(tensor.data))
        else:
            weights = dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
            writer.add_tensor(tensor.name, quantize(weights, q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
