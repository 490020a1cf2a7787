package dev.headwater.join;

/**
 * One decoded event; ids are UTF-8. `named` is a conversion's impression_id, null where it names
 * none; `kind` is null in an impression, `domain` in a conversion.
 */
record Event(
    boolean conversion,
    byte[] id,
    byte[] userId,
    byte[] itemId,
    long eventMs,
    Kind kind,
    byte[] named,
    byte[] domain,
    Double value,
    byte[] payload,
    int partition,
    long offset,
    long producedMs) {}
