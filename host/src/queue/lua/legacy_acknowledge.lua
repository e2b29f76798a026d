-- Acknowledges pending entries of legacy workers that have been copied to the end
-- of the stream or to the dead letters.
-- KEYS 1: stream
-- ARGV 1: group   2..: id, consumer
-- Returns how many were acknowledged: only those that the consumer still owns.
local count = 0
for i = 2, #ARGV, 2 do
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if row and row[2] == ARGV[i + 1] then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    count = count + 1
  end
end
return count
