package dev.headwater.join;

import java.io.IOException;
import org.apache.flink.api.common.typeutils.SimpleTypeSerializerSnapshot;
import org.apache.flink.api.common.typeutils.TypeSerializerSnapshot;
import org.apache.flink.core.memory.DataInputView;
import org.apache.flink.core.memory.DataOutputView;

/**
 * One record for one of the join's topics. `reason` is null for samples and attributions, the times
 * are those of the newest event in it, `partition` and `offset` those of the event that it is about.
 */
public record Verdict(
    JoinOutput.Topic topic,
    byte[] key,
    byte[] value,
    boolean conversion,
    int partition,
    long offset,
    long watermarkMs,
    long eventMs,
    long producedMs,
    long joinedMs,
    String reason) {

  /** Operator and sink run in one task, which hands records on as they are: this stays unused. */
  public static final class Serializer extends ImmutableSerializer<Verdict> {
    private static final long serialVersionUID = 1L;
    static final Serializer INSTANCE = new Serializer();

    @Override
    public void serialize(Verdict verdict, DataOutputView out) throws IOException {
      throw new IOException("verdicts: expected the sink in the operator's task");
    }

    @Override
    public Verdict deserialize(DataInputView in) throws IOException {
      throw new IOException("verdicts: expected the sink in the operator's task");
    }

    @Override
    public TypeSerializerSnapshot<Verdict> snapshotConfiguration() {
      return new Snapshot();
    }
  }

  /** Flink asks for one. */
  public static final class Snapshot extends SimpleTypeSerializerSnapshot<Verdict> {
    public Snapshot() {
      super(() -> Serializer.INSTANCE);
    }
  }
}
