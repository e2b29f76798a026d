-- Finds entries that Redis has delivered to this consumer and that are not in
-- flight in it: a reply was lost, and a read of new messages never returns them
-- again. No read may be in progress meanwhile.
-- KEYS 1: stream
-- ARGV 1: group   2: our consumer   3: the bytes after which the batch ends
--   4: the idle ms of a requeued entry   5: the first id to look at   6: the last
--   one   7..: the ids in flight between these, at most 1000
-- Returns { id, consumer, delivery count, { field, value, ... } } for each entry of
-- a batch; none at the end. An entry that was deleted has no fields. Afterwards their leases are renewed. The delivery
-- count is unchanged, because the message has not run; it is one higher for a
-- requeued entry, which is thereby delivered again.
local in_flight, found, bytes_left = {}, {}, tonumber(ARGV[3])
for i = 7, #ARGV do in_flight[ARGV[i]] = true end
for _, row in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[5], ARGV[6], 100000, ARGV[2])) do
  if bytes_left <= 0 or #found >= 1000 then break end
  if not in_flight[row[1]] then
    local count = row[3] >= tonumber(ARGV[4]) and row[4] + 1 or math.max(row[4], 1)
    local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'RETRYCOUNT', count)[1]
    for _, text in ipairs(entry and entry[2] or {}) do bytes_left = bytes_left - #text end
    found[#found + 1] = { row[1], row[2], count, entry and entry[2] or {} }
  end
end
return found
