package dev.headwater.join;

/**
 * One record of either stream, validated once; ids are UTF-8.
 *
 * @param pair whom it is about; of an event that cannot be decoded any key, to spread them
 * @param kind position of a conversion's kind in the config, -1 in an impression
 * @param named a conversion's impression_id, null where it names none
 * @param domain of an impression, where a rate depends on it
 * @param clocked whether it may move its partition's watermark: it is not from the future
 * @param error why it cannot be decoded; then there is no id and no time
 * @param foreignKey the record's own key, of an event that cannot be decoded or is from the future
 */
public record Event(
    boolean conversion,
    PairKey pair,
    byte[] id,
    long eventMs,
    int kind,
    byte[] named,
    byte[] domain,
    Double value,
    byte[] payload,
    int partition,
    long offset,
    long producedMs,
    boolean clocked,
    String error,
    byte[] foreignKey) {

  /** What Flink keys the stream by. */
  public static final class Key
      implements org.apache.flink.api.java.functions.KeySelector<Event, PairKey> {
    private static final long serialVersionUID = 1L;

    @Override
    public PairKey getKey(Event event) {
      return event.pair;
    }
  }
}
