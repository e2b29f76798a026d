-- Stands before the scripts that look at a topic for people, and those that
-- empty one: which of a stream's entries nobody has taken, and what a list was.
-- KEYS, ARGV: none of its own. Returns nothing.

local function less(one, other)
  if #one ~= #other then return #one < #other end
  return one < other
end

-- Whether an entry's id is behind another's. Its parts are too long for numbers.
local function is_behind(id, other)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  if ms == other_ms then return less(other_seq, seq) end
  return less(other_ms, ms)
end

-- The id behind which a stream's entries wait, and how many other groups read
-- it; nothing where the key is no stream. Where the group is gone, what lies
-- below the floor was delivered once.
local function waits_behind(stream, state, group)
  if redis.call('TYPE', stream).ok ~= 'stream' then return nil, 0 end
  local last, others = nil, 0
  for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local fields = {}
    for i = 1, #info, 2 do fields[info[i]] = info[i + 1] end
    if fields.name == group then last = fields['last-delivered-id'] else others = others + 1 end
  end
  -- Only the topic's own key has a history, and so a floor.
  if not last and state == '{' .. stream .. '}:state' then last = redis.call('HGET', state, 'floor') end
  last = last or '0-0'
  if not string.find(last, '-', 1, true) then last = last .. '-0' end
  return last, others
end

-- To be called after a list was made shorter: an empty one is no key, and what
-- is published next would make it a stream for ever. The topic's own key is
-- the only list that plain clients write to. Behind a deletion this is not
-- refused at maxmemory.
local function remember_list(list, state)
  if state ~= '{' .. list .. '}:state' then return end
  if redis.call('HGET', state, 'kind') ~= 'list' then redis.call('HSET', state, 'kind', 'list') end
end
