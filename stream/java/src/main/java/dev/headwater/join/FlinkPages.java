package dev.headwater.join;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import org.apache.flink.api.common.state.MapState;
import org.apache.flink.api.common.state.MapStateDescriptor;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.base.LongSerializer;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;
import org.apache.flink.runtime.state.KeyGroupRange;
import org.apache.flink.runtime.state.KeyGroupRangeAssignment;
import org.apache.flink.runtime.state.KeyedStateBackend;
import org.apache.flink.runtime.state.VoidNamespace;
import org.apache.flink.runtime.state.VoidNamespaceSerializer;

/**
 * Pages as keyed state of any of Flink's backends. State belongs to a key, so each key group has a key
 * of its own that stands for it: the first of a fixed row of keys that falls into it.
 */
final class FlinkPages implements PageState {
  private final KeyedStateBackend<PairKey> backend;
  private final KeyGroupRange groups;
  private final PairKey[] standsFor;
  private final MapState<Long, byte[]> pages;
  private final MapState<Long, byte[]> dead;

  FlinkPages(KeyedStateBackend<PairKey> backend, KeyGroupRange groups, int groupsMax)
      throws Exception {
    this.backend = backend;
    this.groups = groups;
    standsFor = new PairKey[groupsMax];
    for (int left = groupsMax, i = 0; left > 0; i++) {
      byte[] name = String.valueOf(i).getBytes(StandardCharsets.US_ASCII);
      PairKey key = PairKey.of(new Span(), Span.of(name));
      int group = KeyGroupRangeAssignment.assignToKeyGroup(key, groupsMax);
      if (standsFor[group] == null) {
        standsFor[group] = key;
        left--;
      }
    }
    pages = state("pages");
    dead = state("dead");
  }

  private MapState<Long, byte[]> state(String name) throws Exception {
    return backend.getPartitionedState(
        VoidNamespace.INSTANCE,
        VoidNamespaceSerializer.INSTANCE,
        new MapStateDescriptor<>(name, LongSerializer.INSTANCE, Bytes.INSTANCE));
  }

  @Override
  public int groupOf(PairKey key) {
    return KeyGroupRangeAssignment.assignToKeyGroup(key, standsFor.length);
  }

  @Override
  public void each(Visitor visitor) throws Exception {
    for (int group : groups) {
      enter(group);
      for (Map.Entry<Long, byte[]> page : pages.entries()) {
        visitor.visit(group, page.getKey(), page.getValue(), dead.get(page.getKey()));
      }
    }
  }

  @Override
  public byte[] page(int group, long number) throws Exception {
    enter(group);
    return pages.get(number);
  }

  @Override
  public void keepPage(int group, long number, byte[] page) throws Exception {
    enter(group);
    pages.put(number, page);
  }

  @Override
  public void keepDead(int group, long number, byte[] bits) throws Exception {
    enter(group);
    dead.put(number, bits);
  }

  @Override
  public void drop(int group, long number) throws Exception {
    enter(group);
    pages.remove(number);
    dead.remove(number);
  }

  private void enter(int group) {
    backend.setCurrentKey(standsFor[group]);
  }

  /** Byte arrays that nobody writes to: Flink's own serializer copies each after every checkpoint. */
  public static final class Bytes extends ImmutableSerializer<byte[]> {
    private static final long serialVersionUID = 1L;
    static final Bytes INSTANCE = new Bytes();

    @Override
    public void serialize(byte[] bytes, DataOutputView out) throws IOException {
      out.writeInt(bytes.length);
      out.write(bytes);
    }

    @Override
    public byte[] deserialize(DataInputView in) throws IOException {
      byte[] bytes = new byte[in.readInt()];
      in.readFully(bytes);
      return bytes;
    }

    @Override
    public TypeSerializerSnapshot<byte[]> snapshotConfiguration() {
      return new Snapshot();
    }
  }

  /** No layout but this one. */
  public static final class Snapshot extends SimpleTypeSerializerSnapshot<byte[]> {
    public Snapshot() {
      super(() -> Bytes.INSTANCE);
    }
  }
}
