-- Acknowledges entries that the original has already copied to the end of the
-- stream or to its dead letters, and never acknowledges itself.
-- KEYS 1: stream
-- ARGV 1: group   2..: id, owner
-- Returns how many. Only what still has that owner is touched.
local count = 0
for i = 2, #ARGV, 2 do
  local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if row and row[2] == ARGV[i + 1] then
    redis.call('XACK', KEYS[1], ARGV[1], ARGV[i])
    count = count + 1
  end
end
return count
