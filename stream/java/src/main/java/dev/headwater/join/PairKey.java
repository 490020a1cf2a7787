package dev.headwater.join;

import java.io.IOException;
import java.util.Arrays;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/**
 * The join's key, a user and an item: their UTF-8 with {@code 0x1f} between, which is also the key of
 * the pair's records in Kafka ({@code event_key} in topics/event.py). Immutable.
 *
 * <p>Where the user ends is part of the key, since an id may hold the separator itself.
 */
public final class PairKey {
  private static final byte SEPARATOR = 0x1f;

  final byte[] bytes;
  final int userLength;
  private final int hash;

  PairKey(byte[] bytes, int userLength) {
    this.bytes = bytes;
    this.userLength = userLength;
    this.hash = 31 * Arrays.hashCode(bytes) + userLength;
  }

  static PairKey of(Span userId, Span itemId) {
    int userLength = userId.length();
    byte[] bytes = new byte[userLength + 1 + itemId.length()];
    System.arraycopy(userId.bytes, userId.from, bytes, 0, userLength);
    bytes[userLength] = SEPARATOR;
    System.arraycopy(itemId.bytes, itemId.from, bytes, userLength + 1, itemId.length());
    return new PairKey(bytes, userLength);
  }

  byte[] userId() {
    return Arrays.copyOf(bytes, userLength);
  }

  @Override
  public boolean equals(Object other) {
    return this == other
        || (other instanceof PairKey key
            && key.hash == hash
            && key.userLength == userLength
            && Arrays.equals(key.bytes, bytes));
  }

  @Override
  public int hashCode() {
    return hash;
  }

  @Override
  public String toString() {
    return new String(bytes, java.nio.charset.StandardCharsets.UTF_8);
  }

  /** How Flink writes it: in front of the pair's state, and nowhere else. */
  public static final class Serializer extends ImmutableSerializer<PairKey> {
    private static final long serialVersionUID = 1L;
    static final Serializer INSTANCE = new Serializer();

    @Override
    public void serialize(PairKey key, DataOutputView out) throws IOException {
      out.writeInt(key.userLength);
      out.writeInt(key.bytes.length);
      out.write(key.bytes);
    }

    @Override
    public PairKey deserialize(DataInputView in) throws IOException {
      int userLength = in.readInt();
      byte[] bytes = new byte[in.readInt()];
      in.readFully(bytes);
      return new PairKey(bytes, userLength);
    }

    @Override
    public TypeSerializerSnapshot<PairKey> snapshotConfiguration() {
      return new Snapshot();
    }
  }

  /** No layout but this one. */
  public static final class Snapshot extends SimpleTypeSerializerSnapshot<PairKey> {
    public Snapshot() {
      super(() -> Serializer.INSTANCE);
    }
  }
}
