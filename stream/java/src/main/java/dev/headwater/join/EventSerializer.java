package dev.headwater.join;

import java.io.IOException;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/** {@link Event} between source and operator: never kept, so it may change with any release. */
public final class EventSerializer extends ImmutableSerializer<Event> {
  private static final long serialVersionUID = 1L;
  static final EventSerializer INSTANCE = new EventSerializer();

  private static final int CONVERSION = 1;
  private static final int CLOCKED = 2;
  private static final int VALUE = 4;
  private static final int ERROR = 8;

  @Override
  public void serialize(Event event, DataOutputView out) throws IOException {
    int flags = event.conversion() ? CONVERSION : 0;
    flags |= event.clocked() ? CLOCKED : 0;
    flags |= event.value() != null ? VALUE : 0;
    flags |= event.error() != null ? ERROR : 0;
    out.writeByte(flags);
    PairKey.Serializer.INSTANCE.serialize(event.pair(), out);
    write(event.payload(), out);
    out.writeInt(event.partition());
    out.writeLong(event.offset());
    out.writeLong(event.producedMs());
    out.writeLong(event.eventMs());
    if (event.error() != null) {
      out.writeUTF(event.error());
      write(event.foreignKey(), out);
      return;
    }
    if (!event.clocked()) {
      write(event.foreignKey(), out);
    }
    write(event.id(), out);
    if (!event.conversion()) {
      write(event.domain(), out);
      return;
    }
    out.writeInt(event.kind());
    write(event.named(), out);
    if (event.value() != null) {
      out.writeDouble(event.value());
    }
  }

  @Override
  public Event deserialize(DataInputView in) throws IOException {
    int flags = in.readByte();
    boolean conversion = (flags & CONVERSION) != 0;
    PairKey pair = PairKey.Serializer.INSTANCE.deserialize(in);
    byte[] payload = read(in);
    int partition = in.readInt();
    long offset = in.readLong();
    long producedMs = in.readLong();
    long eventMs = in.readLong();
    String error = null;
    byte[] foreignKey = null;
    byte[] id = null;
    byte[] domain = null;
    byte[] named = null;
    int kind = -1;
    Double value = null;
    if ((flags & ERROR) != 0) {
      error = in.readUTF();
      foreignKey = read(in);
    } else {
      foreignKey = (flags & CLOCKED) != 0 ? null : read(in);
      id = read(in);
      if (conversion) {
        kind = in.readInt();
        named = read(in);
        value = (flags & VALUE) != 0 ? Double.valueOf(in.readDouble()) : null;
      } else {
        domain = read(in);
      }
    }
    return new Event(
        conversion, pair, id, eventMs, kind, named, domain, value, payload, partition, offset,
        producedMs, (flags & CLOCKED) != 0, error, foreignKey);
  }

  private static void write(byte[] bytes, DataOutputView out) throws IOException {
    out.writeInt(bytes == null ? -1 : bytes.length);
    if (bytes != null) {
      out.write(bytes);
    }
  }

  private static byte[] read(DataInputView in) throws IOException {
    int length = in.readInt();
    if (length < 0) {
      return null;
    }
    byte[] bytes = new byte[length];
    in.readFully(bytes);
    return bytes;
  }

  @Override
  public TypeSerializerSnapshot<Event> snapshotConfiguration() {
    return new Snapshot();
  }

  /** Flink asks for one; nothing is ever restored by it. */
  public static final class Snapshot extends SimpleTypeSerializerSnapshot<Event> {
    public Snapshot() {
      super(() -> INSTANCE);
    }
  }
}
