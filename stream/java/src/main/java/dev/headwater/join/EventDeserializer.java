package dev.headwater.join;

import java.util.Arrays;
import java.util.Set;
import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.table.data.GenericRowData;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.data.StringData;

/**
 * Bytes to (id, user_id, item_id, event_ms, kind, named, amount, payload, error): validated once,
 * here. Bytes that are no event become a row with `error` set, never an exception.
 */
final class EventDeserializer implements DeserializationSchema<RowData> {
  static final int ARITY = 9;
  /** A foreign producer's key beyond this is dropped; headers say where the source record lies. */
  private static final int KEY_BYTES_MAX = 33_000;
  private static final int ERROR_PAIRS = 256;

  private final String stream;
  private final Set<String> kinds;
  private final int bytesMax;
  private final boolean withDomain;
  private final TypeInformation<RowData> producedType;
  private transient EventScanner scanner;

  EventDeserializer(
      String stream,
      Set<String> kinds,
      int bytesMax,
      boolean withDomain,
      TypeInformation<RowData> producedType) {
    this.stream = stream;
    this.kinds = kinds;
    this.bytesMax = bytesMax;
    this.withDomain = withDomain;
    this.producedType = producedType;
  }

  @Override
  public RowData deserialize(byte[] message) {
    if (stream.equals("key")) {
      return GenericRowData.of(
          (Object) (message != null && message.length > KEY_BYTES_MAX ? null : message));
    }
    if (scanner == null) {
      scanner = new EventScanner(stream.equals("conversions"), kinds, withDomain);
    }
    GenericRowData row = new GenericRowData(ARITY);
    row.setField(7, message);
    try {
      requireSize(message, row);
      scanner.scan(message);
    } catch (BadEvent bad) {
      // undecodable rows have no pair; spread them so that a burst does not land on one task
      row.setField(1, StringData.fromString(""));
      row.setField(
          2, StringData.fromString(String.valueOf(Arrays.hashCode(message) % ERROR_PAIRS)));
      row.setField(8, StringData.fromString(bad.getMessage()));
      return row;
    }
    row.setField(0, StringData.fromBytes(scanner.id));
    row.setField(1, StringData.fromBytes(scanner.userId));
    row.setField(2, StringData.fromBytes(scanner.itemId));
    row.setField(3, scanner.eventMs);
    row.setField(4, text(scanner.kind));
    row.setField(5, text(scanner.named));
    row.setField(6, scanner.value);
    return row;
  }

  private static StringData text(byte[] bytes) {
    return bytes == null ? null : StringData.fromBytes(bytes);
  }

  /**
   * `produce` refuses an event over the limit, but compression takes a foreign producer's past the
   * broker's limit. No output topic could hold it, so as many of its bytes as fit are kept.
   */
  private void requireSize(byte[] message, GenericRowData row) throws BadEvent {
    if (message != null && message.length > bytesMax) {
      row.setField(7, Arrays.copyOf(message, bytesMax));
      throw new BadEvent(
          "size: expected at most " + bytesMax + " bytes, got " + message.length
              + "; the first " + bytesMax + " are kept");
    }
  }

  @Override
  public boolean isEndOfStream(RowData nextElement) {
    return false;
  }

  @Override
  public TypeInformation<RowData> getProducedType() {
    return producedType;
  }
}
