-- Deletes a batch of the oldest dead letters.
-- KEYS 1: the dead letters
-- ARGV 1: the last id to delete, or empty for the age   2: only those that are
--   older than this in ms   3: the most letters of the batch   4: the bytes after
--   which the batch ends
-- Returns how many were deleted; 0 is the end. May be sent twice.
local dead, last, before = KEYS[1], ARGV[1], now_ms() - tonumber(ARGV[2])
local deleted, bytes_left = 0, tonumber(ARGV[4])

while deleted < tonumber(ARGV[3]) and bytes_left > 0 do
  local entry = redis.call('XRANGE', dead, '-', last ~= '' and last or '+', 'COUNT', 1)[1]
  if not entry then break end
  if last == '' and tonumber(string.match(entry[1], '^%d+')) >= before then break end
  redis.call('XDEL', dead, entry[1])
  deleted = deleted + 1
  -- Redis returns no id without the fields, so all of the entry was read.
  for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
end
return deleted
