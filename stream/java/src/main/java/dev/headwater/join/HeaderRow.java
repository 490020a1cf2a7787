package dev.headwater.join;

import org.apache.flink.table.data.ArrayData;
import org.apache.flink.table.data.GenericArrayData;
import org.apache.flink.table.data.MapData;
import org.apache.flink.table.data.StringData;

/**
 * The headers of one record as Flink's MAP: fixed names, values in their order. A GenericMapData would
 * hash eight names for every record, only to be read once from front to end.
 */
final class HeaderRow implements MapData {
  private static final Object[] NAMES = {
    StringData.fromString("hw_stream"),
    StringData.fromString("hw_partition"),
    StringData.fromString("hw_offset"),
    StringData.fromString("hw_watermark_ms"),
    StringData.fromString("hw_event_ms"),
    StringData.fromString("hw_produced_ms"),
    StringData.fromString("hw_joined_ms"),
    StringData.fromString("hw_reason")
  };
  private static final ArrayData ALL = new GenericArrayData(NAMES);
  private static final ArrayData WITHOUT_REASON =
      new GenericArrayData(java.util.Arrays.copyOf(NAMES, NAMES.length - 1));

  private final ArrayData names;
  private final ArrayData values;

  /** `values` in the order of the names; one fewer where there is no reason. */
  HeaderRow(Object[] values) {
    this.names = values.length == NAMES.length ? ALL : WITHOUT_REASON;
    this.values = new GenericArrayData(values);
  }

  @Override
  public int size() {
    return values.size();
  }

  @Override
  public ArrayData keyArray() {
    return names;
  }

  @Override
  public ArrayData valueArray() {
    return values;
  }
}
