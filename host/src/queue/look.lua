-- Looks through a piece of one of a topic's keys for what mentions an id, so
-- that a backlog is not sent over the wire. Changes nothing.
-- KEYS 1: what is looked through   2: state, or for 'body' the set of due times
-- ARGV 1: how: waiting or pending (a stream), entries (a stream whose
--   entries nobody takes), list, body, due (the same by time), scored (a sorted set), ranked
--   (the same by score)   2: where to go on, '' for the start   3: how many at
--   most, except that a scan may bring a few more   4: how many bytes: who has
--   brought as many is the last   5: group   6: the id, '' for all   7: the
--   longest part of it that needs no escape
-- Returns { where to go on or '' at the end, how many were looked at, hits }.
-- A hit of waiting and entries: { id, fields }; of pending: { id, fields,
-- consumer, idle ms, deliveries }; of list: { item }; of body and due: { token,
-- fields, due in Unix ms, hash of the body }; of scored
-- and of ranked: { member, score }.
local key, state, from, limit, bytes_left = KEYS[1], KEYS[2], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local group, id, plain = ARGV[5], ARGV[6], ARGV[7]
local hits, looked_at = {}, 0

-- Large ones are found out by reading them, so few are read at once, and one
-- at first.
local AT_ONCE_MAX = 16
local at_once = 0.5

local function has_room()
  return looked_at < limit and bytes_left > 0
end

-- How many to read next.
local function few()
  at_once = math.min(at_once * 2, AT_ONCE_MAX)
  return math.min(at_once, limit - looked_at)
end

local function weigh(text)
  bytes_left = bytes_left - #text
end

local function mentions(text)
  if string.find(text, id, 1, true) then return true end
  return string.find(text, '\\', 1, true) and string.find(text, plain, 1, true)
end

local function any_mentions(entry_id, fields)
  if mentions(entry_id) then return true end
  for _, text in ipairs(fields) do
    if mentions(text) then return true end
  end
  return false
end

local function is_not_pending(entry_id)
  local rows = redis.pcall('XPENDING', key, group, entry_id, entry_id, 1)
  return rows.err or #rows == 0
end

-- Looks at a stream's entries behind this one, all of them where it is none.
local function entries_behind(behind, look_at)
  while has_room() do
    local count = few()
    local entries = redis.call('XRANGE', key, behind == '' and '-' or '(' .. behind, '+', 'COUNT', count)
    for _, entry in ipairs(entries) do
      looked_at, behind = looked_at + 1, entry[1]
      for _, text in ipairs(entry[2]) do weigh(text) end
      if any_mentions(entry[1], entry[2]) then look_at(entry) end
    end
    if #entries < count then return '' end
  end
  return behind
end

-- Looks at pairs of a hash or sorted set by a command that goes on by a cursor.
local function pairs_scanned(command, look_at)
  local cursor = from == '' and '0' or from
  repeat
    local page = redis.call(command, key, cursor, 'COUNT', few())
    cursor = page[1]
    for i = 1, #page[2], 2 do
      looked_at = looked_at + 1
      weigh(page[2][i])
      weigh(page[2][i + 1])
      look_at(page[2][i], page[2][i + 1])
    end
  until cursor == '0' or not has_room()
  return cursor == '0' and '' or cursor
end

-- Looks at pairs of a sorted set in the order of its scores.
local function pairs_ranked(set, look_at)
  local first = tonumber(from == '' and 0 or from)
  while has_room() do
    local count = few()
    local rows = redis.call('ZRANGE', set, first, first + count - 1, 'WITHSCORES')
    for i = 1, #rows, 2 do
      if not has_room() then return whole(first) end
      looked_at, first = looked_at + 1, first + 1
      weigh(rows[i])
      look_at(rows[i], rows[i + 1])
    end
    if #rows < count * 2 then return '' end
  end
  return whole(first)
end

local look = {}

function look.waiting()
  local behind = waits_behind(key, state, group)
  if not behind then return '' end
  if from == '' or is_behind(behind, from) then from = behind end
  return entries_behind(from, function(entry)
    if is_not_pending(entry[1]) then hits[#hits + 1] = { entry[1], unpacked(entry[2]) } end
  end)
end

function look.pending()
  if redis.call('TYPE', key).ok ~= 'stream' then return '' end
  local rows = redis.pcall('XPENDING', key, group, from == '' and '-' or '(' .. from, '+', limit)
  if rows.err then
    -- Without a group nothing is in flight.
    if string.find(rows.err, 'NOGROUP', 1, true) then return '' end
    error(rows)
  end
  for _, row in ipairs(rows) do
    if not has_room() then break end
    looked_at, from = looked_at + 1, row[1]
    local entry = redis.call('XRANGE', key, row[1], row[1])[1]
    for _, text in ipairs(entry and entry[2] or {}) do weigh(text) end
    if entry and any_mentions(entry[1], entry[2]) then
      hits[#hits + 1] = { row[1], unpacked(entry[2]), row[2], row[3], row[4] }
    end
  end
  return has_room() and '' or from
end

function look.entries()
  return entries_behind(from, function(entry)
    hits[#hits + 1] = { entry[1], unpacked(entry[2]) }
  end)
end

-- The place of what was looked at last, behind a colon its text: where things
-- were taken from the left meanwhile, it stands further left. One that stood
-- there twice only sends us back, and one that is gone to the start.
function look.list()
  if redis.call('TYPE', key).ok ~= 'list' then return '' end
  local at, text = string.match(from, '^(%d+):(.*)$')
  local first = 0
  if at then
    at = tonumber(at)
    if redis.call('LINDEX', key, at) ~= text then at = redis.call('LPOS', key, text) or -1 end
    first = at + 1
  end
  while has_room() do
    local count = few()
    local items = redis.call('LRANGE', key, first, first + count - 1)
    for _, item in ipairs(items) do
      looked_at, text = looked_at + 1, item
      weigh(item)
      if mentions(item) then hits[#hits + 1] = { item } end
    end
    if #items < count then return '' end
    first = first + count
  end
  return whole(first - 1) .. ':' .. text
end

local function delayed(token, packed, due)
  due = due or redis.call('ZSCORE', state, token)
  if packed and due and mentions(packed) then
    hits[#hits + 1] = { token, unpacked(cmsgpack.unpack(packed)), due, redis.sha1hex(packed) }
  end
end

function look.body()
  return pairs_scanned('HSCAN', delayed)
end

function look.due()
  return pairs_ranked(state, function(token, due)
    local packed = redis.call('HGET', key, token)
    weigh(packed or '')
    delayed(token, packed, due)
  end)
end

function look.scored()
  return pairs_scanned('ZSCAN', function(member, score)
    if mentions(member) then hits[#hits + 1] = { member, score } end
  end)
end

function look.ranked()
  return pairs_ranked(key, function(member, score) hits[#hits + 1] = { member, score } end)
end

local go_on = look[ARGV[1]]()
return { go_on, looked_at, hits }
