-- Replaces the body of a dead letter.
-- KEYS 1: the dead letters
-- ARGV 1: id   2: the new body
-- Returns the id of the new letter, or nil where the old one does not exist any
-- more. Afterwards the old letter is deleted, and the new one has all its other
-- fields; if the old one had no body, its plain fields are replaced by the body.
-- Entries never change, so the id proves that this is the letter that was read.
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return nil end
local old, fields, had_body = unpacked(entry[2]), { 'message', ARGV[2] }, false
for i = 1, #old, 2 do had_body = had_body or old[i] == 'message' end
for i = 1, #old, 2 do
  if old[i] ~= 'message' and (had_body or string.sub(old[i], 1, 3) == 'gw-') then
    fields[#fields + 1] = old[i]
    fields[#fields + 1] = old[i + 1]
  end
end
local id = add(KEYS[1], fields)
redis.call('XDEL', KEYS[1], ARGV[1])
return id
