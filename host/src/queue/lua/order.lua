-- The order of entry ids. Shared by the scripts that compare them; it precedes
-- their text.
-- KEYS, ARGV: none. Returns nothing.

local function less(one, other)
  if #one ~= #other then return #one < #other end
  return one < other
end

-- Whether an entry's id follows another one. Its parts are too long for numbers.
local function is_behind(id, other)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms == other_ms then return less(other_seq, seq) end
  return less(other_ms, ms)
end

-- An id with both of its parts: '0' is a legal id for Redis.
local function full(id)
  return string.find(id, '-', 1, true) and id or id .. '-0'
end
