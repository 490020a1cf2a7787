package dev.headwater.join;

/** One decoded event; `named` is a conversion's impression_id, null where it names none. */
record Event(
    boolean conversion,
    String id,
    String userId,
    String itemId,
    long eventMs,
    String kind,
    String named,
    Double value,
    byte[] payload,
    int partition,
    long offset,
    long producedMs) {}
