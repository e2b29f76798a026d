-- What is in a stream, at or before the group's last delivered id, and not
-- pending is one of three kinds. At or before `history` it is finished: legacy
-- workers and other groups leave that. Else, at or before `start`, it was passed
-- over before we first opened the group, so it was never ours. Else it is
-- unfinished: its pending row was lost, for example with its consumer.
-- Shared by the scripts that tell them apart; it and `order.lua` precede their text.
-- KEYS, ARGV: none. Returns nothing.

-- The state's field for a stream; the class of the main key is empty.
local function field_for(name, class)
  return class == '' and name or name .. ':' .. class
end

local function info_of(list)
  local info = {}
  for i = 1, #list, 2 do info[list[i]] = list[i + 1] end
  return info
end

-- A position that lies behind the last delivered id has no meaning any more:
-- XGROUP SETID, or a new group, lets those entries be delivered once more.
local function clamp(id, last)
  return is_behind(id, last) and last or id
end

-- Returns { last, start, history, others, looked }; nil without our group.
local function positions(key, state, group, class)
  local last, others = nil, 0
  for _, list in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local info = info_of(list)
    if info.name == group then last = info['last-delivered-id'] else others = others + 1 end
  end
  if not last then return nil, others end
  local start, history, looked =
    unpack(redis.call('HMGET', state, field_for('start', class), field_for('history', class), field_for('looked', class)))
  return {
    -- Without a start in the state nobody knows what was ours, and nothing is run.
    last = last, start = clamp(full(start or last), last), history = clamp(full(history or '0'), last),
    others = others, looked = looked and tonumber(looked),
  }, others
end

-- The pending ids from one entry to another, as a set. They include entries that
-- were deleted while they were pending, so there may be more of them than entries.
local function pending_between(key, group, first, last)
  local pending, from = {}, first
  repeat
    local rows = redis.call('XPENDING', key, group, from, last, 100)
    for _, row in ipairs(rows) do
      pending[row[1]] = true
      from = '(' .. row[1]
    end
  until #rows < 100
  return pending
end

-- The ids of a batch of entries behind one id and up to another. They are read one
-- by one, because the size of an entry is known only then.
local function batch_behind(key, from, last, limit, bytes_left)
  local ids, behind = {}, from == '-' and '-' or '(' .. from
  while #ids < limit and bytes_left > 0 do
    local entry = redis.call('XRANGE', key, behind, last, 'COUNT', 1)[1]
    if not entry then break end
    ids[#ids + 1], behind = entry[1], '(' .. entry[1]
    for _, text in ipairs(entry[2]) do bytes_left = bytes_left - #text end
  end
  return ids
end
