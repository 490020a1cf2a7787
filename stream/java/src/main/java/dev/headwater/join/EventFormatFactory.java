package dev.headwater.join;

import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.ConfigOptions;
import org.apache.flink.configuration.ReadableConfig;
import org.apache.flink.table.connector.ChangelogMode;
import org.apache.flink.table.connector.format.DecodingFormat;
import org.apache.flink.table.connector.source.DynamicTableSource;
import org.apache.flink.table.data.RowData;
import org.apache.flink.table.factories.DeserializationFormatFactory;
import org.apache.flink.table.factories.DynamicTableFactory;
import org.apache.flink.table.factories.FactoryUtil;
import org.apache.flink.table.types.DataType;

/**
 * The SQL format {@code headwater-event}: one row per Kafka record, whatever its bytes are.
 *
 * <p>{@code stream} = impressions | conversions gives the columns of {@link EventDeserializer}
 * ({@code with-domain}: an impression's domain in the column {@code kind});
 * {@code stream} = key passes a record's key, null included, which the built-in raw format drops.
 */
public final class EventFormatFactory implements DeserializationFormatFactory {
  private static final ConfigOption<String> STREAM =
      ConfigOptions.key("stream").stringType().noDefaultValue();
  private static final ConfigOption<String> KINDS =
      ConfigOptions.key("kinds").stringType().defaultValue("");
  private static final ConfigOption<Integer> BYTES_MAX =
      ConfigOptions.key("bytes-max").intType().defaultValue(Integer.MAX_VALUE);
  private static final ConfigOption<Boolean> WITH_DOMAIN =
      ConfigOptions.key("with-domain").booleanType().defaultValue(false);

  @Override
  public DecodingFormat<DeserializationSchema<RowData>> createDecodingFormat(
      DynamicTableFactory.Context context, ReadableConfig options) {
    FactoryUtil.validateFactoryOptions(this, options);
    String stream = options.get(STREAM);
    int bytesMax = options.get(BYTES_MAX);
    boolean withDomain = options.get(WITH_DOMAIN);
    Set<String> kinds = new TreeSet<>(Set.of(options.get(KINDS).split(",")));
    return new DecodingFormat<>() {
      @Override
      public DeserializationSchema<RowData> createRuntimeDecoder(
          DynamicTableSource.Context sourceContext, DataType physicalType) {
        return new EventDeserializer(
            stream,
            kinds,
            bytesMax,
            withDomain,
            sourceContext.createTypeInformation(physicalType));
      }

      @Override
      public ChangelogMode getChangelogMode() {
        return ChangelogMode.insertOnly();
      }
    };
  }

  @Override
  public String factoryIdentifier() {
    return "headwater-event";
  }

  @Override
  public Set<ConfigOption<?>> requiredOptions() {
    return Set.of(STREAM);
  }

  @Override
  public Set<ConfigOption<?>> optionalOptions() {
    return Set.of(KINDS, BYTES_MAX, WITH_DOMAIN);
  }
}
