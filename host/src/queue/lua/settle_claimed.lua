-- Settles finished messages without follow-ups where the topic deduplicates.
-- KEYS 1: stream   2: state   3: deleted   4: dedup:claims
-- ARGV 1: group   2: our consumer   3: 1 to delete the entries, 0 where another
--   group reads the stream too   4: the stream's class in tokens   5: the counter's
--   name   6: the window in ms, 0 to write no markers   7: number of ids   8..: the
--   ids; then for each claim: hash of its key, first entry
-- Returns 1. May be sent twice. Counter and markers come last: at maxmemory they
-- may be refused, and the messages have to be settled all the same.
local state, claims, window, ids_end = KEYS[2], KEYS[4], tonumber(ARGV[6]), 7 + tonumber(ARGV[7])
local at = {
  stream = KEYS[1], state = state, deleted = KEYS[3],
  group = ARGV[1], consumer = ARGV[2], deletes = ARGV[3], class = ARGV[4],
}
local count = acknowledge(at, { unpack(ARGV, 8, ids_end) })
local hashes, freed = {}, { 'HDEL', claims }
for i = ids_end + 1, #ARGV, 2 do hashes[#hashes + 1] = ARGV[i] end
for i, text in ipairs(redis.call('HMGET', claims, unpack(hashes))) do
  if text and is_of(text, ARGV[ids_end + 2 * i]) then freed[#freed + 1] = hashes[i] end
end
if #freed > 2 then redis.call(unpack(freed)) end
if window > 0 then pcall(mark_finished, state, claims, hashes, window) end
redis.pcall('HINCRBY', state, ARGV[5], count)
return 1
